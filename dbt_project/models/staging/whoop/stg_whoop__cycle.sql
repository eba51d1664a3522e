{{ pending_model('whoop', 'cycle') }}
