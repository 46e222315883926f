#!/usr/bin/env bash
# DSN on WSJ0-2mix, 8 kHz: the paper's experiment, with partial overlap.
#
#   ./run.sh --wsj0_dir DIR --metadata_dir DIR   from the corpus WSJ0 and the mixing lists
#   ./run.sh --wsj0_2mix_dir DIR                 from mixtures that exist
#
# Static networks and other losses: --enh_config conf/train_*.yaml.
# Needs: this package with the extras `recipes,wsj0`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/wsj0_2mix/local/recipe.sh
. "${here}/local/recipe.sh"

run_recipe --fs 8k --enh_config conf/train_dsn.yaml \
    --overlap_ratio "0.25 1" --test_overlap "1 0.75 0.5 0.25" --partial_train false \
    --test_sets "test_overlap100 test_overlap75 test_overlap50 test_overlap25" -- "$@"
