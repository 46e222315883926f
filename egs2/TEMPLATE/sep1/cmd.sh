#!/usr/bin/env bash
# Where jobs run. Choose with `cmd_backend=slurm ./run.sh ...`, or edit this file.
#   local  on this machine (utils/run.py)
#   slurm  sbatch (utils/slurm.pl); queue and options in conf/slurm.conf, in Kaldi's format
# Another system: write a program that takes run.pl's options and name it here.

case "${cmd_backend:-local}" in
    local)
        train_cmd="utils/run.py"  # data preparation, scoring, profiling
        cuda_cmd="utils/run.py"   # training
        decode_cmd="utils/run.py" # separation
        ;;
    slurm)
        train_cmd="utils/slurm.pl"
        cuda_cmd="utils/slurm.pl"
        decode_cmd="utils/slurm.pl"
        ;;
    *)
        echo "error: cmd_backend='${cmd_backend}': expected local or slurm (see cmd.sh)" >&2
        exit 2
        ;;
esac
export train_cmd cuda_cmd decode_cmd
