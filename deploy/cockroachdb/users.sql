-- After bootstrap.sql, by root, in the database cellpay. Each is the common name of a client
-- certificate (deploy/kubernetes/base/certificates.yaml); nobody has a password.
-- tests/integration/test_database_users.py runs it on PostgreSQL, and the migrations as `migrate`.
CREATE USER IF NOT EXISTS migrate;
CREATE USER IF NOT EXISTS cell;
CREATE USER IF NOT EXISTS controller;
CREATE USER IF NOT EXISTS auditor;
-- Owns the tables, by making them.
GRANT CREATE ON SCHEMA public TO migrate;
-- Cells read and write rows of every table and change none.
ALTER DEFAULT PRIVILEGES FOR ROLE migrate IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO cell;
-- `cellctl verify`, the console and people look at everything, and change nothing. What the vault
-- holds is sealed.
ALTER DEFAULT PRIVILEGES FOR ROLE migrate IN SCHEMA public GRANT SELECT ON TABLES TO auditor;
-- Controllers look too; what they write is granted after the migrations, by grants.sql.
ALTER DEFAULT PRIVILEGES FOR ROLE migrate IN SCHEMA public GRANT SELECT ON TABLES TO controller;
