"""Jobs in this process, in processes of our own, or in any ``concurrent.futures.Executor``; same results."""

from analognoise.pool.executors import check_executor, enough, size_of
from analognoise.pool.processes import WorkerProcesses
from analognoise.pool.run import Job, run_jobs
from analognoise.pool.scheduler import connected
from analognoise.pool.travel import Shared, check_travel, one_thread, threads_set

__all__ = [
    "Job",
    "Shared",
    "WorkerProcesses",
    "check_executor",
    "check_travel",
    "connected",
    "enough",
    "one_thread",
    "run_jobs",
    "size_of",
    "threads_set",
]
