{{ pending_model('nightscout', 'meals') }}
