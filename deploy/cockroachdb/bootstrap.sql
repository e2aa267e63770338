-- Once, by an administrator, on a CockroachDB cluster whose nodes were started with
-- --locality=region=<region>. Then: python -m cells.migrations upgrade cockroachdb+asyncpg://…
-- Not run in this repository's tests: CockroachDB cannot be installed here.
CREATE DATABASE IF NOT EXISTS cellpay;
ALTER DATABASE cellpay PRIMARY REGION "region-a";
ALTER DATABASE cellpay ADD REGION IF NOT EXISTS "region-b";
ALTER DATABASE cellpay ADD REGION IF NOT EXISTS "region-c";
-- Three regions at least; writes then need a second region's answer.
ALTER DATABASE cellpay SURVIVE REGION FAILURE;
