#!/usr/bin/env bash
# S4M on LRS2-2Mix, 16 kHz: the paper's experiment.
#
#   ./run.sh --lrs2_2mix_dir DIR   the archive, unpacked
#
# S4M-tiny and the ablations: --enh_config conf/train_*.yaml.
# Needs: this package with the extras `recipes`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/lrs2_2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 16k --enh_config conf/train_s4m.yaml -- "$@"
