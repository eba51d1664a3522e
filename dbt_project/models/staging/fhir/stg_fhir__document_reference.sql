{{ pending_model('fhir', 'document_reference') }}
