{{ pending_model('withings', 'workout') }}
