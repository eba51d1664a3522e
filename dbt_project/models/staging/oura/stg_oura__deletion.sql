{{ pending_model('oura', 'deletion') }}
