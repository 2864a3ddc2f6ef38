//! A client's connection by HTTP/2: streams side by side, each in a task on the connection's worker.
