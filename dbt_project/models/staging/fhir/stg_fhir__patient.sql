{{ pending_model('fhir', 'patient') }}
