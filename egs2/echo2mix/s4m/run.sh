#!/usr/bin/env bash
# S4M on Echo2Mix, 16 kHz: beyond the paper.
#
#   ./run.sh --echo2mix_dir DIR   the archive, unpacked
#
# Needs: this package with the extras `recipes`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/echo2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 16k --enh_config ../../lrs2_2mix/s4m/conf/train_s4m.yaml -- "$@"
