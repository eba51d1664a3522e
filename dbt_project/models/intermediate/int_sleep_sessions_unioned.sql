{{ sleep_sessions_unioned() }}
