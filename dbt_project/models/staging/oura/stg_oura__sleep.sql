{{ pending_model('oura', 'sleep') }}
