-- Once, by root, on a CockroachDB cluster whose nodes were started with
-- --locality=region=<region>. Then users.sql, the migrations, backup.sql (README.md).
-- Not run in this repository's tests: CockroachDB cannot be installed here.
CREATE DATABASE IF NOT EXISTS cellpay;
ALTER DATABASE cellpay PRIMARY REGION "region-a";
ALTER DATABASE cellpay ADD REGION IF NOT EXISTS "region-b";
ALTER DATABASE cellpay ADD REGION IF NOT EXISTS "region-c";
-- Three regions at least; writes then need a second region's answer.
ALTER DATABASE cellpay SURVIVE REGION FAILURE;
-- Old versions of rows are kept for as long as between two backups, and an hour: an incremental
-- backup needs all of them, and a read of the past (AS OF SYSTEM TIME) finds what an error undid.
ALTER DATABASE cellpay CONFIGURE ZONE USING gc.ttlseconds = 7200;
-- What the cluster itself needs to go on survives as much: five replicas, in three regions.
ALTER RANGE meta CONFIGURE ZONE USING num_replicas = 5;
ALTER RANGE system CONFIGURE ZONE USING num_replicas = 5;
ALTER RANGE liveness CONFIGURE ZONE USING num_replicas = 5;
-- A node that is gone for longer is dead, and its replicas are made anew elsewhere.
SET CLUSTER SETTING server.time_until_store_dead = '5m';
