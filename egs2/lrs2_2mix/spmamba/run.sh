#!/usr/bin/env bash
# SPMamba on LRS2-2Mix, 16 kHz: beyond the paper.
#
#   ./run.sh --lrs2_2mix_dir DIR   the archive, unpacked
#
# Needs: this package with the extras `recipes`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/lrs2_2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 16k --enh_config ../../echo2mix/spmamba/conf/train_spmamba.yaml -- "$@"
