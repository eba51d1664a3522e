{{ pending_model('garmin_connect', 'records') }}
