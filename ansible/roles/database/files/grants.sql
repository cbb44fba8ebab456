-- What each account may do: exactly what its program does. Tables and columns that are not named are out of reach, and
-- only the account of `fedsim admin migrate` may create or alter them. Tested by tests/integration/test_database_accounts.py.
REVOKE ALL PRIVILEGES, GRANT OPTION FROM 'fedsim'@'127.0.0.1', 'fedsim-web'@'127.0.0.1', 'fedsim-migrations'@'127.0.0.1';

GRANT ALL ON fedsim.* TO 'fedsim-migrations'@'127.0.0.1';

-- fedsim-server: it reads whose a task is, and no password.
GRANT SELECT ON fedsim.alembic_version TO 'fedsim'@'127.0.0.1';
GRANT SELECT (id, name) ON fedsim.users TO 'fedsim'@'127.0.0.1';
GRANT SELECT, UPDATE, DELETE ON fedsim.tasks TO 'fedsim'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE ON fedsim.rounds TO 'fedsim'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE ON fedsim.checkpoints TO 'fedsim'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE, DELETE ON fedsim.nodes TO 'fedsim'@'127.0.0.1';
GRANT SELECT, INSERT ON fedsim.datasets TO 'fedsim'@'127.0.0.1';
GRANT SELECT, INSERT, DELETE ON fedsim.events TO 'fedsim'@'127.0.0.1';

-- fedsim-web, and the commands of `fedsim admin`: accounts, and tasks as users ask for them. What rounds and nodes report is
-- only read; `fedsim admin datasets --forget` deletes a digest.
GRANT SELECT ON fedsim.alembic_version TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE ON fedsim.users TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE, DELETE ON fedsim.sessions TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE, DELETE ON fedsim.tokens TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, INSERT, DELETE ON fedsim.attempts TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, INSERT, UPDATE ON fedsim.tasks TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT ON fedsim.rounds TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT ON fedsim.checkpoints TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT ON fedsim.nodes TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, DELETE ON fedsim.datasets TO 'fedsim-web'@'127.0.0.1';
GRANT SELECT, INSERT ON fedsim.events TO 'fedsim-web'@'127.0.0.1';
