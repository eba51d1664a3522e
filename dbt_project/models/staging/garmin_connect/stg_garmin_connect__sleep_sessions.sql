{{ pending_model('garmin_connect', 'sleep_sessions') }}
