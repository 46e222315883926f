#!/usr/bin/env bash
# DSN on `mini` with partial overlap: a network that works hard only where both voices speak.
#
#   ./run.sh --stage 1 --stop_stage 7                      generated voices, nothing to download
#   ./run.sh --speech_dir DIR --stage 1 --stop_stage 7     your own clean speech, DIR/<speaker>/*.wav
#   ./run.sh --enh_config conf/train_dsn_si_a10.yaml       signal-independent loss that goes too far
#   ./run.sh --overlap_ratio "1 1"                         fully overlapping voices
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
# By default voices overlap for 20 to 80 % of the time in which either speaks.
[[ " ${data_args[*]} " == *" --overlap_ratio="* || " ${data_args[*]} " == *" --from_metadata="* ||
    " ${data_args[*]} " == *" --min_or_max=min "* ]] || data_args+=(--overlap_ratio="0.2 0.8")

cd "${here}"
exec ./sep.sh --corpus mini --fs 8k --enh_config conf/train_dsn.yaml \
    --inference_model valid.loss.best.pth \
    --licence CC-BY-4.0 --data_licence "speech generated with espeak-ng, or your own" \
    "${sep_args[@]}" -- "${data_args[@]}"
