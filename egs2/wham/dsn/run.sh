#!/usr/bin/env bash
# DSN on WHAM!, 8 kHz: the paper's experiment, with noise part of the time.
#
#   ./run.sh --wham_noise_dir DIR --wsj0_2mix_dir DIR   from the noise and wsj0-2mix
#   ./run.sh --wham_dir DIR                             from mixtures that exist
#
# Needs: this package with the extras `recipes,wsj0`, a GPU for training. Sizes and times: --dry_run true.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/stage.sh
. "${here}/utils/stage.sh"
# shellcheck source=egs2/wham/local/recipe.sh
. "${here}/local/recipe.sh"

test_sets=(test_overlap{100,75,50,25}_noise{100,75,50,25,0})
run_recipe --fs 8k --enh_config conf/train_dsn.yaml \
    --overlap_ratio "0.25 1" --test_overlap "1 0.75 0.5 0.25" \
    --noise_activity "0 1" --test_noise "1 0.75 0.5 0.25 0" --partial_train false \
    --test_sets "${test_sets[*]}" -- "$@"
