{{ pending_model('libreview', 'meals') }}
