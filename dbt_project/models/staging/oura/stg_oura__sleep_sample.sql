{{ pending_model('oura', 'sleep_sample') }}
