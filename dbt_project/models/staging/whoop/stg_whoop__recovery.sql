{{ pending_model('whoop', 'recovery') }}
