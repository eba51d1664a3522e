{{ pending_model('whoop', 'sleep') }}
