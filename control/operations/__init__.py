"""Operations: failover, drain, restore, move. State machines in the store, resumable by anyone."""
