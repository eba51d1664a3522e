{{ sleep_sessions_pending() }}
