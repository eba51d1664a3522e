{{ pending_model('fitbit', 'workout') }}
