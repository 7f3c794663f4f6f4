#!/usr/bin/env bash
# srun ... bash rank.sh COMMAND ...: run a command as one rank of a torch process group, with torchrun's variables.
# srun starts where the job's first node is, so that rank 0 is there too. A rank is bound to no CPU: unless somebody has
# said how many threads it may have, it has as many as its share of the CPUs, and not one for each CPU of the job.
exec env RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS" \
    MASTER_ADDR="$SLURM_LAUNCH_NODE_IPADDR" MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) \
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}" "$@"
