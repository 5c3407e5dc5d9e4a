"""Tasks of a second each, to grow for. With a folder: then results that are kept while the pool shrinks.

Arguments: how many tasks; a folder with input.txt, for the second part. The last line that it prints is what it saw, as JSON;
times are seconds since 1970, by the clock of the one machine that all of it runs on.
"""
import json
import os
import socket
import sys
import time

from pyspark import StorageLevel
from pyspark.sql import SparkSession

PARTS = 20
context = SparkSession.builder.getOrCreate().sparkContext


def second(_):
    began = time.time()
    time.sleep(1)
    return socket.gethostname(), began


def backlog(count):
    began, firsts = time.time(), {}
    for host, at in context.parallelize(range(count), count).map(second).collect():
        firsts[host] = min(at, firsts.get(host, at))
    return {"began": began, "firsts": firsts}


def parse(lines):
    return (json.loads(line)["value"] for line in lines)


def slow(number):
    time.sleep(0.1)
    return number % 10, number


def add(a, b):
    return a + b


def timed(rdd):
    began = time.time()
    total = rdd.sum()
    return time.time() - began, total


def alternate(cached, lines, rounds):
    """Both ways in turn: seconds of each, and the one result that all must have."""
    pairs = [(timed(cached), timed(lines.mapPartitions(parse))) for _ in range(rounds)]
    totals = {total for pair in pairs for _, total in pair}
    if len(totals) != 1:
        sys.exit(f"not the same results: {totals}")
    seconds = {"cached": [a for (a, _), _ in pairs], "read": [b for _, (b, _) in pairs]}
    return seconds, totals.pop()


def kept(folder, rounds):
    read = context.accumulator(0)

    def parse_and_count(part):
        read.add(1)
        return parse(part)

    lines = context.textFile(folder + "/input.txt", PARTS)
    cached = lines.mapPartitions(parse_and_count).persist(StorageLevel.MEMORY_AND_DISK)
    pairs = context.parallelize(range(PARTS * 10), PARTS).map(slow)
    grouped = pairs.reduceByKey(add, PARTS)
    told = {"first": timed(cached)[0], "parts": cached.getNumPartitions()}
    groups = sorted(grouped.collect())
    told["before"], total = alternate(cached, lines, rounds)

    # The need falls to one task at a time, and these shuffle.
    told["fell"] = time.time()
    open(folder + "/fell", "w").close()
    told["shuffles"] = 0
    while not os.path.exists(folder + "/go"):
        context.parallelize(range(5), 1).map(slow).reduceByKey(add, 1).collect()
        told["shuffles"] += 1

    was = read.value
    told["after"], again = alternate(cached, lines, rounds)
    if (again, sorted(grouped.collect())) != (total, groups):
        sys.exit("not the same results after the pool shrank")
    told["read_again"] = read.value - was
    return told


told = backlog(int(sys.argv[1]))
if len(sys.argv) > 2:
    told.update(kept(sys.argv[2], int(sys.argv[3])))
print("RESULT " + json.dumps(told), flush=True)
