{{ pending_model('garmin', 'activity_sample') }}
