-- Once, by root. The bucket is another account's, in no region of the mesh, with object lock: who
-- has the cluster cannot delete its backups. EXTERNAL CONNECTION keeps the credentials out of jobs.
-- Not run in this repository's tests: CockroachDB cannot be installed here.
CREATE EXTERNAL CONNECTION IF NOT EXISTS backups AS 's3://cellpay-backups/mesh?AUTH=implicit';
-- With revision history any moment can be restored, not only those of the backups: what an error
-- has done at 12:03 is undone to 12:02.
CREATE SCHEDULE IF NOT EXISTS cellpay_backup
  FOR BACKUP DATABASE cellpay INTO 'external://backups'
  WITH revision_history, detached
  RECURRING '@hourly'
  FULL BACKUP '@daily'
  WITH SCHEDULE OPTIONS first_run = 'now', on_execution_failure = 'retry', on_previous_running = 'wait';
-- Settings and users; small.
CREATE SCHEDULE IF NOT EXISTS cluster_backup
  FOR BACKUP INTO 'external://backups/cluster'
  WITH detached
  RECURRING '@daily'
  FULL BACKUP ALWAYS
  WITH SCHEDULE OPTIONS first_run = 'now', on_execution_failure = 'retry', on_previous_running = 'wait';
-- Every schedule, its last and next run: SHOW SCHEDULES FOR BACKUP;
