{{ pending_model('garmin', 'nap') }}
