-- After the first migration, by migrate or root; again when a table is added here.
-- The fence, and the history of owners.
GRANT INSERT, UPDATE ON TABLE slots TO controller;
GRANT INSERT ON TABLE slot_history TO controller;
-- A cell proves by it that it owns a slot, and never gives itself one: FOR SHARE asks for UPDATE.
REVOKE INSERT, DELETE ON TABLE slots FROM cell;
REVOKE INSERT, UPDATE, DELETE ON TABLE slot_history FROM cell;
-- Reconciliation's runs and decisions.
GRANT INSERT, UPDATE ON TABLE reconciliation_runs TO controller;
GRANT INSERT, UPDATE ON TABLE reconciliation_breaks TO controller;
GRANT INSERT, UPDATE ON TABLE reconciliation_cases TO controller;
