{{ pending_model('garmin', 'hrv') }}
