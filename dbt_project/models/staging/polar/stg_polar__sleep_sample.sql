{{ pending_model('polar', 'sleep_sample') }}
