"""What Enoki asks a scheduler, on the port of its pages: what there is to do and who does it, and to let a worker go.

    GET /enoki/pool                   {"waiting": TASKS, "workers": [{"address", "leaving", "tasks", "kept", "alone"}]}
    POST /enoki/leave?worker=ADDRESS

`waiting` are tasks that no worker has yet. Of a worker: `tasks` it has, `kept` bytes of results, and of one that leaves `alone`, the
number of results that nobody else has.

A worker that leaves takes no more tasks, and its results are copied to others. It is not closed: who asked ends it, once it has no
tasks and nothing alone. With nobody to copy to, it stays as it was.
"""

import asyncio

from distributed.core import Status
from distributed.http.utils import RequestHandler

# Seconds between two looks at what a leaving worker has left.
PAUSE = 0.3
# And after one that could not leave.
AGAIN = 5
LEAVING = (Status.closing_gracefully, Status.closing)


def alone(scheduler, worker):
    """How many results nobody has but workers that leave."""
    return sum(1 for task in worker.has_what if not any(other in scheduler.running for other in task.who_has))


def shown(scheduler, worker):
    leaving = worker.status in LEAVING
    return {
        "address": worker.host,
        "leaving": leaving,
        "tasks": len(worker.processing),
        "kept": worker.nbytes,
        "alone": alone(scheduler, worker) if leaving else 0,
    }


class Pool(RequestHandler):
    def get(self):
        scheduler = self.server
        waiting = len(scheduler.queued) + len(scheduler.unrunnable)
        self.write({"waiting": waiting, "workers": [shown(scheduler, worker) for worker in scheduler.workers.values()]})


class Leave(RequestHandler):
    async def post(self):
        asked, scheduler = self.get_argument("worker"), self.server
        for worker in scheduler.workers.values():
            if worker.host == asked and worker.address not in under_way:
                under_way.add(worker.address)
                scheduler.loop.add_callback(let_go, scheduler, worker.address)
        self.write({})


# Addresses of workers that are seen off.
under_way = set()


async def let_go(scheduler, address):
    """Has it hand on what it has, and what it still finishes, until somebody ends it."""
    try:
        if address not in await retire(scheduler, address):
            # It stays: an actor is on it, or there is nobody to copy to. Not asked again at every look.
            await asyncio.sleep(AGAIN)
            return
        while worker := scheduler.workers.get(address):
            pass_on(scheduler, worker)
            if alone(scheduler, worker):
                await retire(scheduler, address)
            await asyncio.sleep(PAUSE)
    finally:
        under_way.discard(address)


async def retire(scheduler, address):
    return await scheduler.retire_workers([address], close_workers=False, remove=False)


def pass_on(scheduler, worker):
    """Tasks that it has not begun go to others: it would keep them for ever. It says no where it has begun meanwhile."""
    stealing = scheduler.extensions["stealing"]
    for task in list(worker.processing):
        others = scheduler.valid_workers(task)
        others = scheduler.running if others is None else others & scheduler.running
        if others and task not in worker.executing:
            stealing.move_task_request(task, worker, min(others, key=lambda other: len(other.processing)))


routes = [("/enoki/pool", Pool, {}), ("/enoki/leave", Leave, {})]
