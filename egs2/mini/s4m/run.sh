#!/usr/bin/env bash
# S4M on `mini`: separate two voices in the time domain, trained in minutes on a laptop CPU.
#
#   ./run.sh --stage 1 --stop_stage 7                      generated voices, nothing to download
#   ./run.sh --speech_dir DIR --stage 1 --stop_stage 7     your own clean speech, DIR/<speaker>/*.wav
#
# Needs: this package with the extras `mini,score,pesq,report` (`make venv` installs them).
# Disk: 0.3 GB. Time: about a quarter of an hour on 2 cores.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"

data_options="speech_dir noise_dir rir_dir overlap_ratio noise_snr_db level_range_db seed"
data_options+=" num_train num_valid num_test min_or_max max_seconds from_metadata"
forward_options "${data_options}" "$@"

cd "${here}"
exec ./sep.sh --corpus mini --fs 8k --enh_config conf/train_s4m.yaml \
    --licence CC-BY-4.0 --data_licence "speech generated with espeak-ng, or your own" \
    "${sep_args[@]}" -- "${data_args[@]}"
