{{ pending_model('fitbit', 'sleep') }}
