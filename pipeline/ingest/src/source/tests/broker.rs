//! Against a real broker, when `FLETCH_TEST_KAFKA=host:port` names one.
