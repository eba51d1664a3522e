{{ pending_model('garmin', 'user_metrics') }}
