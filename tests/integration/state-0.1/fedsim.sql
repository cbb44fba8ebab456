BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE attempts (
	id INTEGER NOT NULL, 
	key_hash VARCHAR(64) NOT NULL, 
	until DOUBLE NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY (id)
);
CREATE TABLE checkpoints (
	task INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	size BIGINT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	removed_at DOUBLE, 
	removed_why TEXT NOT NULL, 
	CONSTRAINT pk_checkpoints PRIMARY KEY (task, round), 
	CONSTRAINT fk_checkpoints_task_tasks FOREIGN KEY(task) REFERENCES tasks (number) ON DELETE CASCADE
);
INSERT INTO "checkpoints" VALUES(1,2,'task-1/round-0002.safetensors','248fc4312bc6e3f8518c3cec0008134ce53f142df9b1193af645cd8e8cdc9da0',2840,1.79593869905483412741e+09,NULL,'');
INSERT INTO "checkpoints" VALUES(1,3,'task-1/round-0003.safetensors','86343977630394b3a486646a4840c6bcc20a16633ae4149d10ff622562aaed3b',2840,1.79593869922251963612e+09,NULL,'');
INSERT INTO "checkpoints" VALUES(2,2,'task-2/round-0002.safetensors','ba74e712605114ec0884c57126fae4c185bcad050fd033e494b331b5e5bd23c4',2840,1.79593869996113181114e+09,NULL,'');
INSERT INTO "checkpoints" VALUES(2,3,'task-2/round-0003.safetensors','b877a3ef0e6e75c695585e2a36bda0e19d368b5a82f8a9064278382042ea5af3',2840,1.79593870011121392246e+09,NULL,'');
INSERT INTO "checkpoints" VALUES(3,2,'task-3/round-0002.safetensors','a42958ce1b2e05af362c385455e09854700cca5ac6fd888fec315f29813a10f6',2840,1.79593870146394586563e+09,NULL,'');
INSERT INTO "checkpoints" VALUES(3,3,'task-3/round-0003.safetensors','1a8720c2e88cde3480b56e42f8b2adb3cb3c9e56a6b1318041d619afa96730f8',2840,1795938701.72245,NULL,'');
CREATE TABLE events (
	id INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	task INTEGER, 
	user VARCHAR(64), 
	fields TEXT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (id)
);
INSERT INTO "events" VALUES(1,1.79593869115349364286e+09,'admin_created','researcher was made as an administrator',NULL,'researcher','{}');
INSERT INTO "events" VALUES(2,1.79593869180485892289e+09,'token_created','researcher made the token “tests”',NULL,'researcher','{}');
INSERT INTO "events" VALUES(3,1.79593869213043618197e+09,'submitted','researcher submitted the task',1,'researcher','{}');
INSERT INTO "events" VALUES(4,1.79593869229819130895e+09,'started','on the nodes node-a, node-b',1,NULL,'{}');
INSERT INTO "events" VALUES(5,1.79593869929284453393e+09,'completed','3 rounds done',1,NULL,'{}');
INSERT INTO "events" VALUES(6,1.79593869929997062683e+09,'submitted','researcher submitted the task',2,'researcher','{}');
INSERT INTO "events" VALUES(7,1.79593869933240270608e+09,'started','on the nodes node-a, node-b',2,NULL,'{}');
INSERT INTO "events" VALUES(8,1.7959387001860480309e+09,'completed','3 rounds done',2,NULL,'{}');
INSERT INTO "events" VALUES(9,1.79593870019299888616e+09,'submitted','researcher submitted the task',3,'researcher','{}');
INSERT INTO "events" VALUES(10,1.7959387002771322727e+09,'started','on the nodes node-a, node-b',3,NULL,'{}');
INSERT INTO "events" VALUES(11,1.79593870182445073131e+09,'completed','3 rounds done',3,NULL,'{}');
CREATE TABLE nodes (
	name VARCHAR(64) NOT NULL, 
	seen_at DOUBLE NOT NULL, 
	hello TEXT NOT NULL, 
	CONSTRAINT pk_nodes PRIMARY KEY (name)
);
INSERT INTO "nodes" VALUES('node-b',1.79593870051269721981e+09,'{"node":"node-b","version":"0.1.0","sent_at":1795938700.4872448,"clients":50,"workers":1,"engine":{"name":"sequential","device":"cpu","threads":1,"processor":"Intel(R) Xeon(R) Processor","torch":"2.13.0+cpu"},"datasets":[{"name":"digits","digest":"cccb1c6c5c687300afc087b20d8cce5c0d60a1f6c8b5165c23f79cca5175af84","num_train":1438,"num_test":359,"feature_shape":[8,8],"num_classes":10,"share_test":true}],"problems":[],"models":[{"name":"2nn","version":"0.1.0"},{"name":"cifar_cnn","version":"0.1.0"},{"name":"cnn","version":"0.1.0"},{"name":"logistic","version":"0.1.0"},{"name":"mlp","version":"0.1.0"}],"min_examples":1,"min_privacy_level":"none","tasks":[{"task":"ca2e017471784046bbbaa54d5c7ab6a4","state":"ready","reason":"","round":0,"num_examples":[[10,70]],"versions":["0.1.0"]}]}');
INSERT INTO "nodes" VALUES('node-a',1.7959387005063352585e+09,'{"node":"node-a","version":"0.1.0","sent_at":1795938700.4797895,"clients":50,"workers":1,"engine":{"name":"sequential","device":"cpu","threads":1,"processor":"Intel(R) Xeon(R) Processor","torch":"2.13.0+cpu"},"datasets":[{"name":"digits","digest":"cccb1c6c5c687300afc087b20d8cce5c0d60a1f6c8b5165c23f79cca5175af84","num_train":1438,"num_test":359,"feature_shape":[8,8],"num_classes":10,"share_test":true}],"problems":[],"models":[{"name":"2nn","version":"0.1.0"},{"name":"cifar_cnn","version":"0.1.0"},{"name":"cnn","version":"0.1.0"},{"name":"logistic","version":"0.1.0"},{"name":"mlp","version":"0.1.0"}],"min_examples":1,"min_privacy_level":"none","tasks":[{"task":"ca2e017471784046bbbaa54d5c7ab6a4","state":"ready","reason":"","round":0,"num_examples":[[10,70]],"versions":["0.1.0"]}]}');
CREATE TABLE rounds (
	task INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	num_examples BIGINT NOT NULL, 
	train_loss DOUBLE, 
	seconds TEXT NOT NULL, 
	bytes_sent BIGINT NOT NULL, 
	bytes_received BIGINT NOT NULL, 
	cohort_size INTEGER NOT NULL, 
	missing TEXT NOT NULL, 
	finished_at DOUBLE NOT NULL, 
	loss DOUBLE, 
	accuracy DOUBLE, 
	recall TEXT, 
	auc DOUBLE, 
	CONSTRAINT pk_rounds PRIMARY KEY (task, round), 
	CONSTRAINT fk_rounds_task_tasks FOREIGN KEY(task) REFERENCES tasks (number) ON DELETE CASCADE
);
INSERT INTO "rounds" VALUES(1,0,'3f77799e9a980b3450291afe205c42ec6045c5b546bd3ff25d2338b06d87f935',0,NULL,'{"aggregate":0.07801815400125633,"all":6.382836589998988,"evaluate":0.010955371000818559}',0,0,0,'[]',1.79593869867995500561e+09,2.48200396153115354636e+00,0.116991643454039,'[0.0,0.6857142857142857,0.0,0.0,0.02564102564102564,0.0,0.05128205128205128,0.0,0.0,0.5357142857142857]',NULL);
INSERT INTO "rounds" VALUES(1,1,'4eaa5fd19c7b97158d4eb5a2717097174a6b5b63a77784953987c4c342217821',780,1.84932347658352980168e+00,'{"train":0.1052480939997622,"aggregate":0.014600378999602981,"all":0.1341605649995472}',6019,5456,10,'[]',1.79593869881411218646e+09,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES(1,2,'90251451e227e3760780346893218fc81e330635288cd914e82df70552956b4d',747,1.73843111363121138879e+00,'{"train":0.10166076600035012,"aggregate":0.010054500999103766,"all":0.12876286400023673,"evaluate":0.005669698000929202}',6019,5456,10,'[]',1.79593869894287753107e+09,2.03836158909937248395e+00,3.03621169916434563429e-01,'[0.0,0.4857142857142857,0.3611111111111111,0.24324324324324326,0.6153846153846154,0.03571428571428571,0.358974358974359,0.4782608695652174,0.13513513513513514,0.14285714285714285]',NULL);
INSERT INTO "rounds" VALUES(1,3,'44f98289ef04a8c305816bff9480d49470c3b065ad8ab8b1b9b473c35dee74a3',649,1.64006817138801186395e+00,'{"train":0.1471558270004607,"aggregate":0.02100348600106372,"all":0.194774032001078,"evaluate":0.001347071998679894}',6041,8184,10,'[]',1.79593869913766908648e+09,1.94057569239823202167e+00,3.31476323119777149805e-01,'[0.0,0.6571428571428571,0.25,0.6756756756756757,0.02564102564102564,0.0,0.38461538461538464,0.7608695652173914,0.24324324324324326,0.07142857142857142]',NULL);
INSERT INTO "rounds" VALUES(2,0,'3f77799e9a980b3450291afe205c42ec6045c5b546bd3ff25d2338b06d87f935',0,NULL,'{"aggregate":0.05966366099892184,"all":0.13203418900047836,"evaluate":0.01656650499899115}',0,0,0,'[]',1.79593869946389555927e+09,2.48200396153115354636e+00,0.116991643454039,'[0.0,0.6857142857142857,0.0,0.0,0.02564102564102564,0.0,0.05128205128205128,0.0,0.0,0.5357142857142857]',NULL);
INSERT INTO "rounds" VALUES(2,1,'b477b00646966a49790e4f40d493386f5018116917ddadc4e66536304a7810e9',700,1.63353579895836964475e+00,'{"train":0.1737161590008327,"aggregate":0.043592694999460946,"all":0.23022462700100732}',6019,5456,10,'[]',1.79593869969412350652e+09,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES(2,2,'f9d812a709dd6d940325dee70fc5cc6746e45d840aa21bd50e62a9e72b7129e8',700,1.36763649327414382739e+00,'{"train":0.0978481299989653,"aggregate":0.018765422000797116,"all":0.12991874999897846,"evaluate":0.0014758929992240155}',6019,5456,10,'[]',1.79593869982404327387e+09,2.17726724679798,0.233983286908078,'[1.0,0.0,0.05555555555555555,0.0,0.0,0.03571428571428571,0.0,0.5217391304347826,0.6216216216216216,0.0]',NULL);
INSERT INTO "rounds" VALUES(2,3,'e210c4ed56d7535614ae1741dd21eed05af5fd3179b96ba585265a63cc4c3a6b',700,1.29522724407059808271e+00,'{"train":0.16603318600027706,"aggregate":0.031822295999518246,"all":0.2126550650009449,"evaluate":0.0013773579994449392}',6041,8184,10,'[]',1.79593870003671646122e+09,1.96119542083752396166e+00,3.11977715877437333791e-01,'[1.0,0.08571428571428572,0.8611111111111112,0.0,0.0,0.25,0.02564102564102564,0.6086956521739131,0.21621621621621623,0.0]',NULL);
INSERT INTO "rounds" VALUES(3,0,'3f77799e9a980b3450291afe205c42ec6045c5b546bd3ff25d2338b06d87f935',0,NULL,'{"aggregate":0.11130968900033622,"all":0.1778859050009487,"evaluate":0.03166722999958438}',0,0,0,'[]',1.79593870045440053939e+09,2.48200396153115354636e+00,0.116991643454039,'[0.0,0.6857142857142857,0.0,0.0,0.02564102564102564,0.0,0.05128205128205128,0.0,0.0,0.5357142857142857]',NULL);
INSERT INTO "rounds" VALUES(3,1,'fbf2622f4b4916e853c85898f7d17501009e7d21baab4e7ab66fcdad61119c76',700,1.63353579895836964475e+00,'{"train":0.26157022599909396,"aggregate":0.09385650100011844,"all":0.38994930899934843}',6019,27280,10,'[]',1.7959387008443520069e+09,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES(3,2,'074a1282346c9d516c9f92ba6067f93591e3bb022471d5ee2ccd822c18ce65cd',700,1.45623371430805748083e+00,'{"train":0.3319696210000984,"aggregate":0.0343101470007241,"all":0.388477996999427,"evaluate":0.0018139580006391043}',6019,27280,10,'[]',1.79593870123282933239e+09,2.32873965702030183422e+00,1.05849582172701947579e-01,'[0.0,0.37142857142857144,0.0,0.0,0.02564102564102564,0.03571428571428571,0.0,0.043478260869565216,0.2972972972972973,0.35714285714285715]',NULL);
INSERT INTO "rounds" VALUES(3,3,'cfb1b6a11a0ec181d501f4c5b9586244a504433689eae657c459157bf3381cbe',700,1.32242748865059445151e+00,'{"train":0.3100712340001337,"aggregate":0.029475519000698114,"all":0.3493480750003073,"evaluate":0.0015053170009196037}',6041,27280,10,'[]',1.79593870158218979838e+09,2.29803328595622868846e+00,1.11420612813370470406e-01,'[0.0,0.45714285714285713,0.027777777777777776,0.0,0.0,0.03571428571428571,0.05128205128205128,0.06521739130434782,0.16216216216216217,0.39285714285714285]',NULL);
CREATE TABLE sessions (
	id_hash VARCHAR(64) NOT NULL, 
	user_id INTEGER NOT NULL, 
	csrf VARCHAR(255) NOT NULL, 
	created_at DOUBLE NOT NULL, 
	expires_at DOUBLE NOT NULL, 
	CONSTRAINT pk_sessions PRIMARY KEY (id_hash), 
	CONSTRAINT fk_sessions_user_id_users FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE TABLE tasks (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	uid VARCHAR(32) NOT NULL, 
	user_id INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	settings TEXT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	finished_at DOUBLE, 
	stop_requested BOOLEAN NOT NULL, 
	delete_requested BOOLEAN NOT NULL, 
	round INTEGER NOT NULL, 
	loss DOUBLE, 
	accuracy DOUBLE, 
	phase TEXT NOT NULL, 
	waiting_for TEXT NOT NULL, 
	waiting_until DOUBLE, 
	eta_seconds DOUBLE, 
	nodes TEXT NOT NULL, 
	digest VARCHAR(64), submission VARCHAR(64), 
	CONSTRAINT uq_tasks_uid UNIQUE (uid), 
	CONSTRAINT fk_tasks_user_id_users FOREIGN KEY(user_id) REFERENCES users (id)
);
INSERT INTO "tasks" VALUES(1,'6848d21850a24be6b919ec32f94402a4',1,'completed','3 rounds done','{"title":"of 0.1","model":"logistic","dataset":"digits","partition":"dirichlet","alpha":0.3,"min_partition_size":1,"num_clients":20,"fraction_train":0.5,"num_rounds":3,"local_epochs":1,"local_batch_size":10,"local_learning_rate":0.1,"strategy":"fedprox","weighting":"examples","proximal_mu":0.05,"server_learning_rate":1.0,"server_momentum":0.9,"evaluate_every":2,"save_every":2,"seed":0,"device":"auto","num_nodes":2,"min_responses":1.0,"round_timeout_seconds":600.0}',1.79593869213043618197e+09,1.79593869226797437669e+09,1.7959386992542331219e+09,0,0,3,1.94057569239823202167e+00,3.31476323119777149805e-01,'','[]',NULL,NULL,'["node-a","node-b"]','44f98289ef04a8c305816bff9480d49470c3b065ad8ab8b1b9b473c35dee74a3',NULL);
INSERT INTO "tasks" VALUES(2,'01d59d84e43d41c1bffd1ab0995f0104',1,'completed','3 rounds done','{"title":"of 0.1","model":"logistic","dataset":"digits","partition":"shards","alpha":0.5,"min_partition_size":1,"num_clients":20,"fraction_train":0.5,"num_rounds":3,"local_epochs":1,"local_batch_size":10,"local_learning_rate":0.1,"strategy":"fedavgm","weighting":"uniform","proximal_mu":0.01,"server_learning_rate":1.0,"server_momentum":0.7,"evaluate_every":2,"save_every":2,"seed":0,"device":"auto","num_nodes":2,"min_responses":1.0,"round_timeout_seconds":600.0}',1.79593869929997062683e+09,1.79593869931931304937e+09,1.79593870014946818355e+09,0,0,3,1.96119542083752396166e+00,3.11977715877437333791e-01,'','[]',NULL,NULL,'["node-a","node-b"]','e210c4ed56d7535614ae1741dd21eed05af5fd3179b96ba585265a63cc4c3a6b',NULL);
INSERT INTO "tasks" VALUES(3,'ca2e017471784046bbbaa54d5c7ab6a4',1,'completed','3 rounds done','{"title":"of 0.1","model":"logistic","dataset":"digits","partition":"shards","alpha":0.5,"min_partition_size":1,"num_clients":20,"fraction_train":0.5,"num_rounds":3,"local_epochs":1,"local_batch_size":10,"local_learning_rate":0.1,"strategy":"median","weighting":"examples","proximal_mu":0.01,"server_learning_rate":1.0,"server_momentum":0.9,"evaluate_every":2,"save_every":2,"seed":0,"device":"auto","num_nodes":2,"min_responses":1.0,"round_timeout_seconds":600.0}',1.79593870019299888616e+09,1.79593870022768449783e+09,1.79593870175161457059e+09,0,0,3,2.29803328595622868846e+00,1.11420612813370470406e-01,'','[]',NULL,NULL,'["node-a","node-b"]','cfb1b6a11a0ec181d501f4c5b9586244a504433689eae657c459157bf3381cbe',NULL);
CREATE TABLE tokens (
	id INTEGER NOT NULL, 
	user_id INTEGER NOT NULL, 
	label TEXT NOT NULL, 
	token_hash VARCHAR(64) NOT NULL, 
	hint VARCHAR(32) NOT NULL, 
	created_at DOUBLE NOT NULL, 
	used_at DOUBLE, 
	CONSTRAINT pk_tokens PRIMARY KEY (id), 
	CONSTRAINT fk_tokens_user_id_users FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE, 
	CONSTRAINT uq_tokens_token_hash UNIQUE (token_hash)
);
INSERT INTO "tokens" VALUES(1,1,'tests','55a93fa0bcb1f545465e31baa8be4cf9f14cb57173b1ed4a416e53fdd0dab739','fedsim_XIIt',1.79593869180485892289e+09,1.79593869213043618197e+09);
CREATE TABLE users (
	id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	name_key VARCHAR(255) NOT NULL, 
	password_hash VARCHAR(255) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	language VARCHAR(35) NOT NULL, 
	created_at DOUBLE NOT NULL, 
	CONSTRAINT pk_users PRIMARY KEY (id), 
	CONSTRAINT uq_users_name_key UNIQUE (name_key)
);
INSERT INTO "users" VALUES(1,'researcher','researcher','$argon2id$v=19$m=65536,t=3,p=4$GlDtyYPYgvZ4wjc0SY4O8g$ioYr0w7Gm2FcfxUPq0JPHSm3Ya0WnRdPdYLLovNA8Yw','admin','active','',1.79593869115349364286e+09);
CREATE INDEX ix_events_task_at ON events (task, at);
CREATE INDEX ix_events_at ON events (at);
CREATE INDEX ix_sessions_user_id ON sessions (user_id);
CREATE INDEX ix_sessions_expires_at ON sessions (expires_at);
CREATE INDEX ix_tokens_user_id ON tokens (user_id);
CREATE INDEX ix_tasks_state ON tasks (state);
CREATE INDEX ix_tasks_user_id ON tasks (user_id);
CREATE UNIQUE INDEX ix_tasks_user_id_submission ON tasks (user_id, submission);
CREATE INDEX ix_attempts_until ON attempts (until);
CREATE INDEX ix_attempts_key_hash_until ON attempts (key_hash, until);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('tasks',3);
COMMIT;
