"""What a training would need, told before it is started, for a device that need not be here."""
