"""`tokenformer report`: one HTML page of one run or several."""
