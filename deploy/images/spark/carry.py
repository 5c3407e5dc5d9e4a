"""Runs a driver, and carries its event log to the cluster's master: what there is of it while it runs, the rest when it has ended.

    carry.py PROGRAM ARG...

Signals go to the program, and its exit code is ours: 128+n where a signal ended it. SPARK_MASTER is spark://HOST:7077. A log that the
master does not take is lost, and the job is not: that is said, and nothing else changes.
"""

import os
import signal
import sys
import threading
import time

FOLDER = "/var/lib/spark/log"
GROWING = ".inprogress"
PORT = 18081
PIECE = 1 << 20
# Seconds: between two looks at what was written, for an answer, and for what is left at the end. A stop waits for ten.
PAUSE, ANSWER, LAST = 2, 2, 5


class Carrier:
    """Knows how much of each log the master has."""

    def __init__(self, host):
        self.host = host
        self.there = {}
        self.refused = set()

    def all(self):
        """Sends what is new. True: nothing is left."""
        left = False
        for entry in sorted(os.listdir(FOLDER)):
            name, done = entry.removesuffix(GROWING), not entry.endswith(GROWING)
            path = os.path.join(FOLDER, entry)
            if entry.startswith(".") or name in self.refused or not os.path.isfile(path):
                continue
            try:
                self.one(name, path, done)
            # It was renamed this very moment, or the master is away.
            except OSError:
                left = True
        return not left

    def one(self, name, path, done):
        with open(path, "rb") as log:
            size = os.fstat(log.fileno()).st_size
            while done or self.there.get(name, 0) < size:
                at = self.there.get(name, 0)
                log.seek(at)
                piece = log.read(PIECE)
                last = done and at + len(piece) >= size
                status, told = self.put(f"/{name}?at={at}" + ("&done" if last else ""), piece)
                # 409: it has another part of it than we thought, and says how much.
                if status not in (200, 409) or not told.isdigit() or int(told) > size:
                    print(f"enoki: the event log is not kept: {status} {told}", file=sys.stderr)
                    self.refused.add(name)
                    return
                self.there[name] = int(told)
                if last and status == 200:
                    os.remove(path)
                    return

    def put(self, path, piece):
        import http.client

        connection = http.client.HTTPConnection(self.host, PORT, timeout=ANSWER)
        try:
            connection.request("PUT", path, piece)
            answer = connection.getresponse()
            return answer.status, answer.read(200).decode(errors="replace").strip()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


def carry(carrier, ended):
    while not ended.wait(PAUSE):
        carrier.all()
    until = time.monotonic() + LAST
    while not carrier.all():
        if time.monotonic() > until:
            print("enoki: the event log is not kept: the master does not answer", file=sys.stderr)
            return
        time.sleep(0.2)


def main():
    passed_on = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    waited_for = passed_on | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, setsigmask=[])
    host = os.environ["SPARK_MASTER"].removeprefix("spark://").split(",")[0].rsplit(":", 1)[0]
    ended = threading.Event()
    thread = threading.Thread(target=carry, args=(Carrier(host), ended), daemon=True)
    thread.start()
    code = None
    while code is None:
        came = signal.sigwait(waited_for)
        if came != signal.SIGCHLD:
            os.kill(child, came)
            continue
        # One signal can stand for several.
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
    ended.set()
    thread.join(LAST + ANSWER)
    sys.stderr.flush()
    os._exit(code if code >= 0 else 128 - code)


main()
