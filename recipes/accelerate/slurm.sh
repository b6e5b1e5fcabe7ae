#!/bin/bash
# One stage under Slurm, one process per GPU, resumed as often as it takes:
#
#     sbatch recipes/accelerate/slurm.sh recipes/train_autoencoder.py --run-dir runs/mine --config FILE
#     sbatch --nodes 8 --time 8:00:00 recipes/accelerate/slurm.sh recipes/train_prior.py --run-dir runs/mine --level top
#
# Before the time is up, Slurm sends SIGTERM to this script, which hands it to all processes: they end after the running
# step with a checkpoint, and the job is put back into the queue, where --resume goes on from there. A stage that is done
# ends the job, and is left as it is by a job that comes after it. The run folder has to lie on a file system that all
# nodes share, and sbatch is called where recipes/ is.
#
# Priors in shards (FSDP2): ACCELERATE_USE_FSDP=true FSDP_VERSION=2 sbatch ... Another precision than the configuration
# file names: ACCELERATE_MIXED_PRECISION=bf16 sbatch ...
#
#SBATCH --job-name=hvq
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=hvq-%j.log

set -u

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node take different ports.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

stopping=
stop() {
    stopping=1
    kill -TERM "$step" 2>/dev/null
}
trap stop TERM

# Slurm itself starts every process. A launcher in between (torchrun, accelerate launch) would kill them 30 seconds after
# the signal, whether the checkpoint is written or not.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec python "$@"
' bash "$@" --resume &
step=$!

# A signal ends the first wait; the second is for the checkpoint.
wait "$step"
code=$?
if [ -n "$stopping" ]; then
    wait "$step"
    code=$?
    # 143: stopped with a checkpoint, or between two stages. Any other code is a fault, which would come again.
    [ "$code" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
