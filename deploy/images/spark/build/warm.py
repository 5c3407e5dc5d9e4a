"""A little of what jobs do: RDDs, SQL, a shuffle, a cached table, files, machine learning."""

import urllib.request

from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession, functions as f

spark = SparkSession.builder.appName("warm").getOrCreate()
sc = spark.sparkContext
words = sc.parallelize(["a b", "b c"] * 10, 2).flatMap(str.split).map(lambda w: (w, 1)).reduceByKey(lambda a, b: a + b)
assert dict(words.collect())["b"] == 20
assert sc.parallelize(range(100), 4).cache().map(lambda x: (x % 3, x)).sortByKey().count() == 100

rows = spark.range(0, 1000, 1, 4).withColumn("k", f.col("id") % 7).withColumn("v", f.rand(1)).cache()
rows.write.mode("overwrite").parquet("/tmp/warm.parquet")
rows.write.mode("overwrite").option("header", True).csv("/tmp/warm.csv")
rows.write.mode("overwrite").json("/tmp/warm.json")
spark.read.json("/tmp/warm.json").count()
spark.read.option("header", True).csv("/tmp/warm.csv").count()
spark.read.parquet("/tmp/warm.parquet").createOrReplaceTempView("warm")
spark.sql("select k, count(*) n, avg(v) from warm where v > 0.1 group by k order by n desc").show()
spark.sql("select a.id from warm a join warm b on a.id = b.k limit 5").collect()
rows.rdd.map(lambda r: r.k).distinct().count()

ratings = spark.createDataFrame([(u, i, float((u * i) % 5)) for u in range(10) for i in range(10)], ["user", "item", "rating"])
ALS(rank=2, maxIter=2, userCol="user", itemCol="item", ratingCol="rating", coldStartStrategy="drop").fit(ratings).transform(ratings).count()

ui = sc.uiWebUrl
for path in ("/metrics/json/", "/jobs/", "/executors/", "/api/v1/applications", f"/api/v1/applications/{sc.applicationId}/stages"):
    urllib.request.urlopen(ui + path).read()
spark.stop()
