{{ pending_model('generic', 'record') }}
