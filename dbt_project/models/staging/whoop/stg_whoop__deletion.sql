{{ pending_model('whoop', 'deletion') }}
