{{ pending_model('fitbit_takeout', 'sleep_sessions') }}
