CREATE TEMPORARY VIEW feature_buckets AS
SELECT 'payments' AS `feature`, `user` AS `entity`, `at_ms` / 360000 AS `bucket`, COUNT(*) AS `total`
FROM observations WHERE `user` <> ''
GROUP BY `user`, `at_ms` / 360000
UNION ALL
SELECT 'spent' AS `feature`, `user` AS `entity`, `at_ms` / 14286 AS `bucket`, CAST(LEAST(SUM(CAST(LEAST(GREATEST(`amount`, 0), 9007199254740991) AS DECIMAL(38, 0))), 9007199254740991) AS BIGINT) AS `total`
FROM observations WHERE `user` <> '' AND `currency` = 'USD'
GROUP BY `user`, `at_ms` / 14286
UNION ALL
SELECT 'denied' AS `feature`, `device` AS `entity`, `at_ms` / 60000 AS `bucket`, COUNT(*) AS `total`
FROM observations WHERE `device` <> '' AND `operation` IN ('it''s', 'pay') AND `action` IN ('deny')
GROUP BY `device`, `at_ms` / 60000;

CREATE TEMPORARY VIEW feature_members AS
SELECT DISTINCT 'devices' AS `feature`, `user` AS `entity`, `at_ms` / 30000 AS `bucket`, `device` AS `member`
FROM observations WHERE `user` <> '' AND `device` <> '';

CREATE TEMPORARY VIEW feature_values AS
SELECT a.`id`, 'payments' AS `feature`, CAST(LEAST(COALESCE(SUM(CAST(b.`total` AS DECIMAL(38, 0))), 0), 9007199254740991) AS BIGINT) AS `value`
FROM asked AS a LEFT JOIN feature_buckets AS b ON b.`feature` = 'payments' AND b.`entity` = a.`user`
  AND b.`bucket` BETWEEN a.`at_ms` / 360000 - 9 AND a.`at_ms` / 360000
GROUP BY a.`id`
UNION ALL
SELECT a.`id`, 'spent' AS `feature`, CAST(LEAST(COALESCE(SUM(CAST(b.`total` AS DECIMAL(38, 0))), 0), 9007199254740991) AS BIGINT) AS `value`
FROM asked AS a LEFT JOIN feature_buckets AS b ON b.`feature` = 'spent' AND b.`entity` = a.`user`
  AND b.`bucket` BETWEEN a.`at_ms` / 14286 - 6 AND a.`at_ms` / 14286
GROUP BY a.`id`
UNION ALL
SELECT a.`id`, 'denied' AS `feature`, CAST(LEAST(COALESCE(SUM(CAST(b.`total` AS DECIMAL(38, 0))), 0), 9007199254740991) AS BIGINT) AS `value`
FROM asked AS a LEFT JOIN feature_buckets AS b ON b.`feature` = 'denied' AND b.`entity` = a.`device`
  AND b.`bucket` BETWEEN a.`at_ms` / 60000 - 9 AND a.`at_ms` / 60000
GROUP BY a.`id`
UNION ALL
SELECT a.`id`, 'devices' AS `feature`, COUNT(DISTINCT b.`member`) AS `value`
FROM asked AS a LEFT JOIN feature_members AS b ON b.`feature` = 'devices' AND b.`entity` = a.`user`
  AND b.`bucket` BETWEEN a.`at_ms` / 30000 - 9 AND a.`at_ms` / 30000
GROUP BY a.`id`;
